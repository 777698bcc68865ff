"""What a user writes: one pydantic model per problem kind, one file each."""
