"""The side-by-side benchmark (scripts/bench): what is measured, and what is made of it."""
