"""Make an API key: `python -m service.keys NAME [--notes-per-minute N] >> keys.toml`.

The entry for the file of `NOCTURNE_API_KEYS_FILE` goes to the standard output, the key itself, this once, to the standard error.
"""

import argparse
import json
import secrets
import sys

from service.web.quotas import hash_key


def main() -> None:
    """Print an entry, and its key."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the client, as it will stand in the log")
    parser.add_argument("--notes-per-minute", type=int, help="its quota; 0: none; left out: NOCTURNE_NOTES_PER_MINUTE")
    options = parser.parse_args()
    key = f"nocturne_{secrets.token_urlsafe(32)}"
    lines = ["[[keys]]", f"name = {json.dumps(options.name)}", f'sha256 = "{hash_key(key)}"']
    if options.notes_per_minute is not None:
        lines.append(f"notes_per_minute = {options.notes_per_minute}")
    print("\n".join(lines), end="\n\n")
    print(f"the key of {options.name}, which is kept nowhere: {key}", file=sys.stderr)


if __name__ == "__main__":
    main()
