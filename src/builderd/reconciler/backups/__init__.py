"""The backup schedule: takes what is due, restores what was asked for, tries out and tidies what is kept."""
