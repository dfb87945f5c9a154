"""The words of docs/results.md around its tables."""

from benchmarks.erasure.mass_text import MASS

HEAD = """# What erasing does to the demo model

Recorded by

    python dev.py run python -m benchmarks.erasure --task all --report

on two CPU cores, with the preset *demo model (mace_demo)* for every concept: the same settings for one object and for
ten, for objects and a style. A picture counts as showing a concept when the judge's first answer of its 210 names is
that concept (see [the model's card](../assets/demo/CARD.md)). Every method draws from the same noise as the base model
(seed 9000 and steps of 100 from it), 8 steps of ddim, guidance 4, with the prompts "a photo of the X" and "an
illustration of the X". The settings were searched with six other prompts and another seed ([search.md](search.md)).
Neither the prior's captions nor the templates that erasing reads hold any of these prompts; the captions hold their
words in other arrangements, such as "a photo of a X" or "illustration of the X".

*Refined* is CFR Refine alone; *fused* is the result, closed form of Eq. 7; *naive sum* is Eq. 6 in its place, which
for one concept is its LoRA on the refined model. Numbers are percent, in brackets the middle 95 % of 2,000 bootstrap
samples over the erasures and over the pictures. *Others* are things of the model's 206 besides the CIFAR classes.
*Others moved* is the mean squared distance, in the judge's features, between the pictures of the erased and the base
model with the same noise, where two base pictures of different things are 1 apart. The recorded answers, picture by
picture, are in [benchmarks/results/erasure](../benchmarks/results/erasure). A task takes minutes; *objects* with all
methods takes about two hours on two slow cores, and half of that where tasks and classes run in two processes.
"""

ABOUT = {
    "objects": (
        """
## One object at a time

Acc_e is the accuracy on the erased class, Acc_s on the nine other CIFAR classes, Acc_g on its synonyms of Table 6,
which are not given as aliases, and only those that the base model draws in half of the pictures or more. H_o is the
harmonic mean of 1 - Acc_e, Acc_s and 1 - Acc_g for each class, averaged over the classes, as in Table 1 of the paper.
""",
        """

The other methods are the pack's baseline nodes, in their published form (benchmarks/erasure/baselines.py) but for the
rates, which are searched, and for what makes them affordable here: ESD takes 100 of its 1,000 steps and samples in 8,
Concept Ablation has 64 pictures ([search.md](search.md)). As in Table 1 of the paper MACE is first, ESD-u comes close
to it (83, 84 there) and SLD is far behind. ESD, which trains for a minute where MACE takes ten seconds, keeps
everything; it leaves synonyms, ESD-u a quarter and ESD-x more than half, and some of the classes in part: ESD-x
automobile, horse and ship, ESD-u automobile, frog and deer. Three things are otherwise than in the paper. UCE, second
there with 85, has 28: it preserves all other things by name, and keeps them all, but edits the class's own words, and
synonyms lie far apart in this model's text encoder, where SD1.4's puts them near each other. Concept Ablation and
Forget-Me-Not, which hardly erase anything there (4 and 6), erase here, and take a fifth and more than half of
everything with them: their published rates hardly move this model, at the searched ones they train whole matrices in
all four of its cross-attentions, and one class's pictures are all that they see. SLD and the negative prompt hardly
avoid what the prompt itself asks for.

The targets were Acc_e at most 10, the rest within 2 points, Acc_g at most 20, H_o above 92.6 (the paper's own average
on SD1.4). The first three are met on average; automobile costs truck, and ship an airplane. **H_o is 91, short of its
target by deer alone**: hart, stag and doe lie far from deer in this model's text encoder ([search.md](search.md)),
which knows them as words of their own, and the other nine classes have 98 on average. The model itself can be asked
for such words: [below](#one-object-with-the-aliases-that-the-model-tells) it has 99 to 100 that way.
""",
    ),
    "mixed": (
        """
## Nine objects and a style in one run

airplane, automobile, bird, deer, dog, frog, horse, ship and truck, and the style Twemoji, erased together. *Style* is
the share of pictures asked for as "a Twemoji emoji of a X" in which the judge sees that style, *content in style* how
often it sees the X there.
""",
        """

The targets were at most 10 for the objects and for the style, at most 30 for the synonyms, and others within 4
points: met. With this prior the refinement does most of the work for the objects, and the naive sum, in which each
LoRA counts a tenth, does as well; the LoRAs add most for single concepts (above). The style trains at a lower rate
than the objects, which leaves most of what is asked for in it. UCE, preserving all others by name, erases as much and
loses an eighth of what stays, and two thirds of what is asked for in the style.
""",
    ),
    "shared": (
        """
## Words that a kept concept shares

Nothing is preserved by name here. *Kept* are the concepts whose names hold the erased word.
""",
        """

Eq. 7 keeps hot dog, of which the sum of the LoRA loses half: the prior preserves its name, so that its captions stay
when dog is erased. Those of fire engine and fireworks go with fire, and so do both. To keep such a one, Prior takes its
name to preserve.
""",
    ),
    "aliases": (
        """
## One object with its aliases

The same, with the synonyms of Table 6 given as aliases (`deer | hart, stag, doe`): Acc_e / synonyms / classes / others,
on every fourth of the others.
""",
        """

Named as aliases, all synonyms of all classes go, deer's too, which stay above. The refinement alone does it and keeps
what is beside. The LoRAs, at the rate that reaches synonyms which are not named, then have nothing left to erase, and
take 7 points from the other classes (truck 78, bird 83) and 2 from the rest: where all words for a thing are named,
refinement alone is the better choice on this model.
""",
    ),
    "found": (
        """
## One object with the aliases that the model tells

Nothing is given but the class. Find Aliases tries the 300 nearest words of the text encoder's vocabulary on four
training pictures, with its defaults, and adds those that explain the pictures half as well as the class's own word
does (in brackets); then the same as above: Acc_e / synonyms / classes / others, on every fourth of the others.
""",
        """

All that it finds are synonyms of Table 6 or pieces of them (pole of tadpole, winged of winged creature), and of those
that draw the class it finds all that are one token of the vocabulary; hart, stag and doe too, which no projection could
know. Refinement with them erases every class, leaves 2 percent of the synonyms (anuran, two tokens) and keeps what
stays: H_o is 99, where without aliases the refinement alone has 82, MACE 91, and the paper's own average on SD1.4 is
92.6. The LoRAs halve what is left of the synonyms and take 4 points from the other classes, as with aliases that are
given.

So the targets of one object alone are met in full on this model, H_o too, by asking the model for the words and
refining; LoRAs are what reaches synonyms that nobody knows of.
""",
    ),
    **MASS,
    "styles": (
        """
## A style alone

Twemoji erased, mapped to "art". *Style* is the share of "a Twemoji emoji of a X" in which the judge sees that style;
*content* is how often it sees the X, there and in "a photo of the X".
""",
        """

The style goes, what was asked for in it is drawn in the model's other style, and pictures that do not ask for it
stay.
""",
    ),
    "leak": (
        """
## What leaks through the other words

As in Fig. 2b of the paper: the class's own tokens are replaced by the final end-of-text's embedding, so that it is left
in the words around it alone. How often the class still appears, in percent of 8 pictures:
""",
        """

The base model still draws the class in a third of the pictures: frog and ship always, five classes of ten never.
Refinement alone brings that to 6 %, with the LoRAs it is 1 %: as the paper says, what is left of a concept lies in
the words beside it, and CFR is what takes it out.
""",
    ),
    "ablations": (
        """
## Parts left out

The ten concepts of above, on a quarter of the others, with one thing changed at a time. *All* is the preset: keys and
values, 50 steps, CFIS, squared norm, end-of-text and padding in the loss, focus.
""",
        """

What ten concepts lose, they lose by the refinement (0 of the objects, a quarter of the synonyms); the paper's
refinement alone leaves 68 percent of a hundred celebrities (Table 4). So the parts of the training show in the synonyms
and in what is asked for in the style, and less than there. Of the paper-versus-release options the release's
end-of-text in the loss is worth most: without it, 50 percent of the synonyms stay in place of 27. The sum of norms and
the squared norm do not differ (23 and 27, of 52 pictures). CFIS hardly matters here (29 without), where Table 4 has 70
without and 90 with it: the words that kept concepts share are few in this vocabulary. Focus, which is ours, is worth 11
points of synonyms in the closed form; without it the naive sum takes cat with it, and what is asked for in the style
(15 percent), as Table 4's naive sum takes two thirds of what is to stay.

LoRAs of the release's start (A from a normal distribution of deviation 1/r, without focus) move most in fifty steps;
peft's smaller A moves half as much, erases less by the closed form (46) and spares cat in the naive sum. lambda1
applied twice, as released, makes no difference in the closed form and doubles what the naive sum moves.

By steps (Table 5 and its curves): up to ten steps the LoRAs do nothing yet, and the closed form with them keeps more of
the synonyms (60) than the refinement does (25), for lambda2 holds the prior's captions. At 25 steps it begins, and at
50 values alone erase as much as keys and values (27) and move the others more (0.037, both 0.027), keys alone erase
less (48). Table 5 finds the same order: keys alone erase least, values alone cost most of what is to stay, both are
best; here nothing of the quarter that is judged is lost.
""",
    ),
    "unseen": (
        """
## Prompts of other forms

Dog, airplane and ship, each erased alone, with words that have an embedding and words that have none, before and behind
the name. Percent of pictures that show the class, four of each form, and of 17 others with the same form. The prior
holds some of the others' prompts as captions: 9 of the 17 names alone, 3 "in the forest".
""",
        """

Wherever the base model draws the class (by form and class in 13 of 24 cases), the erased model draws it in no picture.
The others stay in the forms that the base model follows. Where it draws a thing in one picture of four itself ("in the
forest"), they go too, one of 17 is left of four; other such forms move either way ("by the street").
""",
    ),
    "maps": (
        """
## Where the words look

As in Figs. 2a and 10: attention to each token of "a photo of the dog" in pictures of dogs, over layers, heads, three
timesteps and eight pictures. Each layer's map is divided by its mean, so a map tells where a token is looked for and
not how much; brightness is on one scale in each column.

""",
        """
""",
    ),
    "sheets": (
        """
## Pictures

The base model and the erased one, from the same noise.

""",
        """
""",
    ),
    "sampling": (
        """
## How few steps

The base model on all of its 206 things, "a photo of the X", by sampler and number of steps.
""",
        """

Six steps of ddim already draw all of the 206 things, eight leave a margin; all that is judged above uses eight. Euler
does as well. dpmpp_2m needs more than twelve here. The speeds are of one run on two cores; the first row holds the
start of the host as well.
""",
    ),
}
