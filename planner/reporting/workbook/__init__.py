"""Workbooks for planners: sheets as data (`cells`), what each kind of plan shows, and the .xlsx file (`xlsx`).

Formulas recompute demand, load, cost and power in a spreadsheet program; what a solver decided stays a value. Writing
needs the extra `xlsx`; nothing here is imported at start-up.
"""
