TABLES: dict = {}
OWN: dict = {}
MORE = ()
