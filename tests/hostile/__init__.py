"""Files that want a reader to run, open, import or allocate something; made here, never stored."""
