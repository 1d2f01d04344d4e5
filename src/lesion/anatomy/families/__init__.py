"""One file a family; `lesion.anatomy.family` says what the fields mean."""
