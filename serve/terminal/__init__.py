"""`lorafold chat`: the conversation at a terminal; `chat.chat` is the entry."""
