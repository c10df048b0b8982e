"Instruction and preference datasets for any language: start with `run`, `load_rows` and the recipes."

__version__ = "0.1.0"
