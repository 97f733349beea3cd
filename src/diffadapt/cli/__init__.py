"""The command line: `main` and one thin file per command. What a command does lives in `recipes` and `report`."""
