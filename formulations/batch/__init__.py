"""Many instances: a list of jobs, workers that each end on time, and a file of results that can be resumed.

jobs.py       a folder, a list or a sweep -> Job, one at a time
results.py    the file of results: append only, locked, resumed
worker.py     a process that solves one job after another; slot.py holds one and ends it at a limit
run.py        jobs over slots, on this machine or on a Dask cluster
replanning.py whether moving to a new plan pays back
table.py      results as rows: CSV, Parquet, summary
"""
