"""What a domain costs, measured from dom0: its CPU time, and its VM entries and hypercalls."""
