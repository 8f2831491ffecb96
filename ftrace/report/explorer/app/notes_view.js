// @ts-check
/** The view of all notes, with export and import. */

VIEWS["notes"] = { title: "Notes", of: "report", show: () => null };
