"""Problems of known difficulty and who grades them; `families` knows every family by its name."""
