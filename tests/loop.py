"""A training loop of a few lines, for tests that need checkpoints and no trainer."""

import math

import torch
from torch.nn.functional import cross_entropy

import gapscope
from gapscope.measure.loading.datasets.data import load_data
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.loading.trust import Trust


def make_checkpoint(path, *, steps, model="mlp", model_args=None, data="digits", batch_size=32, lr=0.1, seed=0):
    """Train by SGD for so many steps and save, with everything that measuring later needs; return the path."""
    arguments = model_args or {}
    samples = load_data(data, "train", recorded=False, trust=Trust())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[model](**arguments)
        optimizer = torch.optim.SGD(network.parameters(), lr=lr)
        initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        epochs = math.ceil(steps * batch_size / len(samples))
        picks = [part for _ in range(epochs) for part in torch.randperm(len(samples)).split(batch_size)]
        for picked in picks[:steps]:
            optimizer.zero_grad()
            cross_entropy(network(samples.inputs[picked]), samples.targets[picked]).backward()
            optimizer.step()
    with torch.no_grad():
        loss = float(cross_entropy(network.eval()(samples.inputs), samples.targets))
    recipe = {"optimizer": "sgd", "batch_size": batch_size, "lr": lr, "momentum": 0.0, "seed": seed}
    gapscope.save_checkpoint(
        path,
        network,
        factory=model,
        model_args=arguments,
        data=data,
        loss="cross-entropy",
        training={**recipe, "steps": steps, "epochs": steps * batch_size // len(samples), "train_loss": loss},
        initial=initial,
    )
    return path
