"""How fast, and in how much memory, beside what it replaces: `python -m speed`. Not in the wheel."""
