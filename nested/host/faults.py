"""The emulator's own failures, told from ours by their exact signature (docs/testing.md)."""

import re

# Xen dumps a guest's state, and the state is Xen's own: its code segment and its text.
_XENS_STATE = re.compile(
    r"\*\*\* Dumping Dom\d+ vcpu#\d+ state: \*\*\*(?:.*\n){1,6}?.*RIP:\s+e008:\[<ffff82d0[0-9a-f]{8}>\]"
)

# A Linux guest in its event vector, where the flags it came from have interrupts off (bit 9).
_EVENT_VECTOR = re.compile(
    r"asm_sysvec_xen_hvm_callback\+(?:.*\n){1,6}?.*RSP: [0-9a-f]{4}:[0-9a-f]{16} EFLAGS: ([0-9a-f]{8})"
)
_INTERRUPTS_ON = 1 << 9


def emulator_fault(log: str) -> str | None:
    """What the emulator did wrong according to a log, or None if it shows no such thing."""
    if _XENS_STATE.search(log):
        return "a guest's triple fault with Xen's own state"
    for found in _EVENT_VECTOR.finditer(log):
        if not int(found.group(1), 16) & _INTERRUPTS_ON:
            return "a Linux guest took its event vector with interrupts off"
    return None
