"""The page that shows a report, and how it is written: one file, or a folder."""
