"""What a trained model is handed to: a conversation, a server, another program."""
