"""The network: configuration, modality, routers, experts, the sparse model, and how it is found, loaded and saved."""
