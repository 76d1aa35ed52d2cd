"""The scenarios. They run in dom0; docs/testing.md says how to write one."""
