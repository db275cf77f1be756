"""Parts that experiments put into the model, one file each; nothing else of jaxformer imports them."""
