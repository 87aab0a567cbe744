"""The clocks of issuer and registry: a token is valid from a moment to a moment."""

from __future__ import annotations

from typing import Final

from tokenissuer.diagnosis import Finding, Severity
from tokenissuer.doctor.facts import Facts, Outcome

#: Seconds by which the clocks of issuer and registry may differ before `doctor` warns.
WARN: Final = 5
#: Seconds by which they may differ at most: the leeway that registries allow.
FAIL: Final = 60


def check_clocks(facts: Facts) -> Outcome:
    """Compare what the registry's answers say of the time with what the issuer's say."""
    registry = facts.answer.clock if facts.answer is not None else None
    if not facts.registry:
        return Outcome(skipped="no registry was asked")
    if facts.answer is None:
        return Outcome(skipped="the registry did not answer")
    if registry is None:
        return Outcome(skipped="the registry did not say what time it is")
    # Where the realm does not end here, this machine's clock stands for the issuer's.
    ahead = facts.arrival.clock_difference if facts.arrival is not None else 0.0
    difference = ahead - (registry - facts.answer.moment)
    # The registry says whole seconds.
    uncertain = 0.5 + facts.answer.seconds / 2 + (facts.arrival.answer.seconds / 2 if facts.arrival else 0)
    if abs(difference) - uncertain <= WARN:
        return Outcome(note=f"issuer and registry differ by less than {WARN} s")
    severity = Severity.ERROR if abs(difference) - uncertain > FAIL else Severity.WARNING
    facts.clocks_differ = severity is Severity.ERROR
    direction = "ahead of" if difference > 0 else "behind"
    effect = f"at more than {FAIL} s the registry refuses tokens"
    if facts.clocks_differ:
        why = "they seem not to be valid yet" if difference > 0 else "they seem to have ended, all or too early"
        effect = f"the registry refuses tokens: {why}"
    return Outcome(
        [
            Finding(
                severity,
                "clocks",
                f"the issuer's clock is {abs(difference):.0f} s {direction} the registry's (expected: at most {WARN}); "
                f"{effect}",
                "let both machines follow a time server (systemctl status systemd-timesyncd, or chronyc tracking)",
            )
        ]
    )
