"""``python -m lit_tidpo``."""

from lit_tidpo.cli import main

main()
