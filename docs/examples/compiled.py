"""The script of `plain.py`, compiled: one import and one line more."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import stepgraph

EPOCHS = 2 if "--quick" in sys.argv else 20

torch.set_num_threads(1)  # tensors as small as these are not worth sharing out
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * 24)


@stepgraph.compile
def training_step(x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    return loss


for _ in range(EPOCHS):
    for batch in torch.randperm(1536).split(64):
        loss = training_step(images[batch], labels[batch])

with torch.no_grad():
    right = (model(images[1536:]).argmax(1) == labels[1536:]).float().mean()
print(f"loss {loss:.4f}, {right:.1%} of the digits that it never saw are read correctly")
