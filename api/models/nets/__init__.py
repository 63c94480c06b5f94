"""The networks as plain ``nn.Module``, readable beside the papers; no input or output here."""
