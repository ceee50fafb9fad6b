"""Results to files: one file per format. The answers as they come (answers.py), the run's manifest at the end (run_json.py)."""
