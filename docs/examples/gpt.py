"""A small GPT learns English, character by character, from the help texts that Python ships."""

from __future__ import annotations

import math
import sys
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stepgraph

LENGTH, WIDTH, HEADS, BATCH = 64, 64, 4, 16

TEXT = " ".join(" ".join(topics[name] for name in sorted(topics)).split())
CHARACTERS = sorted(set(TEXT))
NUMBERS = {character: number for number, character in enumerate(CHARACTERS)}


class Block(nn.Module):
    """Attention to what came before, then a network for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, length, WIDTH]` from the same."""
        n, length, _ = x.shape
        heads = self.qkv(self.norms[0](x)).view(n, length, 3 * HEADS, -1).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(*heads.chunk(3, dim=1), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, WIDTH))
        return x + self.mlp(self.norms[1](x))


class GPT(nn.Module):
    """Predicts the next character at every position."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(CHARACTERS), WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(layers)), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, len(CHARACTERS), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[batch, length, characters]` of `[batch, length]` numbers."""
        return self.head(self.blocks(self.characters(x) + self.positions.weight[: x.shape[1]]))


class Training:
    """A model, its optimizer, its schedule, and the step."""

    def __init__(self, steps: int, layers: int) -> None:
        torch.manual_seed(0)
        self.text = torch.tensor([NUMBERS[character] for character in TEXT])
        self.model = GPT(layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        warm_up = max(1, steps // 10)

        def factor(step: int) -> float:
            done = step / max(1, steps)
            return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    @stepgraph.compile
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from one batch; return its loss in bits for each character."""
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach() / math.log(2)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Draw pieces of the text, and the same one character later."""
        starts = torch.randint(len(self.text) - LENGTH, (BATCH, 1))
        places = starts + torch.arange(LENGTH)
        return self.text[places], self.text[places + 1]


def train(steps: int, layers: int, *, compiled: bool = True) -> tuple[Training, list[float]]:
    """Train from a fixed seed; return the losses, too."""
    training = Training(steps, layers)
    step = training.step if compiled else training.step.eager
    return training, [step(*training.batch()).item() for _ in range(steps)]


@torch.no_grad()
def continued(model: GPT, text: str, length: int) -> str:
    """Let the model go on with a text."""
    for _ in range(length):
        numbers = torch.tensor([[NUMBERS[character] for character in text[-LENGTH:]]])
        probabilities = F.softmax(model(numbers)[0, -1] / 0.6, dim=0)
        text += CHARACTERS[int(torch.multinomial(probabilities, 1))]
    return text


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors as small as these are not worth sharing out
    quick = "--quick" in sys.argv
    steps, layers = (20, 1) if quick else (1000, 2)
    training, losses = train(steps, layers)
    print(training.step.explain())
    print(f"\n{losses[0]:.2f} bits for a character at first, {losses[-1]:.2f} after {steps} steps")
    print(continued(training.model, "The statement ", 20 if quick else 300))
