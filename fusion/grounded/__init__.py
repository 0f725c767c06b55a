"""Features as ions: measured valences, the cell they migrate in, and what it separates."""
