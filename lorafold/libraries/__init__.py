"""Other people's libraries and programs: what they print, how their threads wait, where they listen."""
