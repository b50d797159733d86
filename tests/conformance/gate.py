"""What the Autobahn report must say. Runs in the suite's own Python 2.7.

`gate.py SPEC INDEX` exits 0 if INDEX holds every case that SPEC selects, each
with `behavior` and `behaviorClose` OK but for those named here. The list of
cases is the suite's, not the report's: one that never ran is missing.
"""

from __future__ import print_function

import json
import sys

from autobahntestsuite.case import CaseBasename, CaseCategories, Cases
from autobahntestsuite.case import CaseSetname, CaseSubCategories
from autobahntestsuite.caseset import CaseSet

# Invalid UTF-8 is refused at the end of the frame that holds it, not at the
# byte: of a frame nothing is looked at before all of it has come.
NON_STRICT = ["6.4.3", "6.4.4"]
# RFC 6455 leaves these open: a message behind which the close comes too soon to
# be echoed, and the close codes 5000 and 65535.
INFORMATIONAL = ["7.1.6", "7.13.1", "7.13.2"]


def verdicts(case):
    """The pairs of behavior and behaviorClose that are right for a case."""
    allowed = [("OK", "OK")]
    if case in NON_STRICT:
        allowed.append(("NON-STRICT", "OK"))
    if case in INFORMATIONAL:
        allowed.append(("INFORMATIONAL", "INFORMATIONAL"))
    return allowed


def main(spec_path, index_path):
    suite = CaseSet(CaseSetname, CaseBasename, Cases, CaseCategories, CaseSubCategories)
    with open(spec_path) as spec:
        cases = suite.parseSpecCases(json.load(spec))
    with open(index_path) as index:
        (results,) = json.load(index).values()

    passed = failed = 0
    for case in cases:
        result = results.get(case)
        verdict = result and (result["behavior"], result["behaviorClose"])
        if verdict not in verdicts(case):
            failed += 1
            print("FAILED %s: %s" % (case, "/".join(verdict) if verdict else "missing"))
            continue
        passed += 1
        if verdict != ("OK", "OK"):
            print("allowed %s: %s" % (case, verdict[0]))
    print("autobahn: %d passed, %d failed" % (passed, failed))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
