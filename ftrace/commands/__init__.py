"""The commands of ftrace, one file each."""
