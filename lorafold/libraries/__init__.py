"""How other people's libraries behave inside our process: what they print, how their threads wait."""
