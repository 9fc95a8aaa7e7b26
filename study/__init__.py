"""Every loss on MiniLVIS under one protocol: `python -m study`. Not in the wheel."""
