"""The embedded model's world: what is drawn and said in it, who judges it, and how the model is made."""
