"`python -m llmdata_nb` is the `llmdata` command."
import sys

from .cli import main

sys.exit(main())
