"""What the model is trained and judged on: behaviors, chats, conversations as arrays, sampled prompts."""
