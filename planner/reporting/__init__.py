"""Reports as pages for people: what one holds (`page`), how it is written (`html`, `markdown`), drawings (`charts`).

Writing HTML needs the extra `report`; nothing here is imported at start-up.
"""
