// What a model reads when its mean keys are measured: prose, dialogue, code, figures and markup, cut at
// LLAMA_TQ_PROMPT_TOKENS. Ours, so that nobody's text is in the side files.
#pragma once

constexpr int LLAMA_TQ_PROMPT_TOKENS = 256;

constexpr const char * LLAMA_TQ_PROMPT =
    R"(The harbour master kept two ledgers. In the first he wrote what every captain told him: tonnage, cargo, the last
port and the next. In the second, which nobody was meant to see, he wrote what he believed. By the spring of 1911 they
agreed on almost nothing, and that was when the letters began to arrive.

def moving_average(values, width=3):
    """Mean of each window of `width` values."""
    return [sum(values[i:i + width]) / width for i in range(len(values) - width + 1)]

"Will it rain tomorrow?" she asked. "It rained on 14 of the last 30 days," he said, "so I would take a coat."

1. Heat the oven to 180 °C.
2. Mix 250 g of flour, 3 eggs and a pinch of salt; add milk until the batter runs.
3. Bake for 25 minutes, then let it cool.

Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. Its first step happens in the thylakoid
membranes, where chlorophyll absorbs mostly red and blue light. La lumière verte est réfléchie; deshalb sind Blätter grün.

{"id": 7, "name": "Ada", "tags": ["engine", "notes"], "active": true, "score": 98.5}

User: What is the capital of Australia, and why do people often get it wrong?
Assistant: It is Canberra. Sydney is larger and better known, so many people guess that it must be the capital.
)";
