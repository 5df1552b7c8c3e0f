"""Random requests from the server's own description of its routes: none is an error of the server's,
and all answers are as described.

    python described.py [--krasis target/release/krasis] [--cases 500]
"""

import argparse
import subprocess
import sys
from pathlib import Path

from served import served

ROOT = Path(__file__).resolve().parents[2]
CHECKS = "not_a_server_error,status_code_conformance,response_schema_conformance"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--krasis", default=ROOT / "target/release/krasis", type=Path)
    arguments.add_argument("--cases", default=500, type=int, help="of each operation")
    arguments = arguments.parse_args()
    # A short context makes short answers.
    with served(arguments.krasis, "--context-max", "64") as url:
        command = [
            Path(sys.executable).parent / "schemathesis", "run", f"{url}/openapi.json",
            "--include-method", "POST", "--phases", "fuzzing", "--checks", CHECKS,
            "--max-examples", str(arguments.cases), "--seed", "1", "--no-color",
            # Other programs may be at work on the machine: slow is not wrong.
            "--request-timeout", "120",
            "--suppress-health-check", "all",
        ]
        subprocess.run(command, check=True)
    print(f"ok {arguments.cases} cases of each operation")


if __name__ == "__main__":
    main()
