"""What experts and routers did: numbers first, pictures second."""
