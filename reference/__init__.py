"""The twins: the same networks as idiomatic `nn.Module`s, differentiated by autograd, stepped by `torch.optim`."""
