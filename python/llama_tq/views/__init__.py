"""The results of the commands for people: tables on a terminal, plots in files; and as JSON."""
