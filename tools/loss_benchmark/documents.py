def write_documents(records, root): return []
