"""The command line. One module a group of verbs, imported when its verb is used."""
