"""Table of data sets, as upstream keeps it."""

data_dict = {
    "not_there": {"annotation_path": "PATH_TO_ANNOTATION", "data_path": ""},
    "pictures": {"annotation_path": "pictures/rows.json", "data_path": "pictures"},
}
