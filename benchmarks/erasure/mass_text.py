"""The words of docs/results.md around the tables of many things in one run."""

MASS = {
    "mass": (
        """
## Many things in one run

The CIFAR classes, then things from all over the model's vocabulary; the same 106 others are kept each time, asked for
as "a photo of the X" (Acc_s) and in captions of eight other forms ("a X in the forest", "my favourite X"). H_c is the
harmonic mean of 1 - Acc_e and Acc_s (Fig. 7c of the paper). *FID* is a Frechet distance to the base model's pictures in
the judge's features, with shrunk covariances, since these are hundreds of pictures and not tens of thousands; the row
of the base model with another noise shows what chance alone makes of it. *Time* is from the list of concepts to the
erased model; the demo model's text layers that change nothing are not computed here.

The refinement has lambda1 1e-4 for each concept and mu 1 in embeddings, with a prior of captions over the whole
vocabulary that steps aside for each list ([search.md](search.md)); nine of the 106 captions stand in it word for word,
none in that of the next section. The preset *demo model, lists of any length* has a larger lambda1 since (next
section). LoRAs are trained as by the preset of the other sections; Eq. 7 has lambda2 1e-4 for each concept and mu 1.
UCE, SPEED and OCE, by their nodes and published weights, preserve all other things by name.
""",
        """

**A hundred at once, half of all that this model knows: the refinement alone leaves 4 percent of them and keeps 98 of
what stays, H_c 97.** The same weights erase all of ten and keep 99. The best hundred published is an H_c of 95.5
(OCE, on another model and other concepts), the paper's own is 90. With the concepts' own words in the closed form
too, 2 are left and 94 stay (96). Up to an earlier version the refinement left 42 of a hundred and kept 92: its prior
held on to ninety of the erased names, and mu measured as the model reads held the rest.

LoRAs add nothing here. Their naive sum changes little (4 left, 97 kept), and Eq. 7 with this lambda2 erases two more
and takes a fifth of what stays: a LoRA of rank 1 in four layers can hardly tell a thing from its hundred and more
neighbours. What they are for is a single concept's synonyms (above).

Captions of other forms are what a long list costs: of the 64 percent that the model itself draws right in them it
keeps 65 and 62 at one and five, 58 at ten, 54 at fifty and 52 at a hundred; within 5 points, which were the aim, up to
five. Most of it is one form of the eight, "look at this X, it is wonderful", whose words this model has no embedding
for and no caption of its prior holds behind a name: 10 of 13 are drawn right by the base, 5 where ten things are gone,
3 where a hundred are. Half of what a hundred cost is there. A larger mu, up to 1e4, does not bring it back;
sentences in the prior do (next section).

UCE erases all hundred and everything else; at ten it keeps 93. SPEED, whose null space has room for few things beside
106 that it preserves by name, leaves a seventh of the hundred and keeps two thirds; at ten it keeps all and leaves a
tenth. OCE has no weight for what is preserved in its published form for objects: it keeps all at one, a third at five
and nothing from ten on, for on this model each name shares most of its directions with all others.

Fifty fare as a hundred do: 2 left and 93 kept by the refinement alone (H_c 96), and a third of the others lost by
Eq. 7's fusion. One and five cost nothing that these pictures show.

Times are from a machine that had other work to do.
""",
    ),
    "sentences": (
        """
## The same, with sentences in the prior

The prior of the section before holds captions of words that the model knows, and none that people put around a name.
Here it has for each thing four of twelve sentences more, such as "we saw one X, and that was all" (SENTENCES in
devtools/demo_prior.py); none of them is asked for. lambda1 is the preset's, own words go too, all else is as above.
To this model every word that it does not know looks alike, so that such sentences lie nearer to each other than in
CLIP. Ten are asked for by their synonyms too, and no other word of them is given.

""",
        """
**Of a hundred 3 are left and 96 of the others stay, H_c 97, and captions are within a point of the base (63 of 64; 52
by the section before). Of nearly all that the model knows, 184 of 206 things, 1 percent is left and 97 stay.** Of the
68 captions that the base draws right a hundred leave 59; 8 others are right that were not. Up to ten things captions
stay within 3 points, also where the ten go with the aliases that the model tells. At fifty they are 8 off (56 of 64,
the aim was 5): a larger lambda1 brings them back and, on the prompts for searching, more than 5 of the fifty too
([search.md](search.md#lists-of-every-length)). A prior has to hold what prompts are made of, not only what they name:
on a real model captions of people do that.

Synonyms without any word given are not reached by the closed form of names: most of them stay at ten. With the
aliases that the model itself tells (Find Aliases with its defaults, 23 words for the ten) 18 percent stay (the aim
was 20), and nobody has named one. It costs what shares such a word, hot dog and police car (car is an alias of
automobile now, and captions that name it are taken out of the prior): 98 of the others stay, 99 without. With a
lambda1 of 1e-3 for the ten, as an earlier preset had it, 15 percent of the synonyms were left, 95 of the others and
56 of the captions. What shares a word and is to stay has to be named to the prior.
""",
    ),
}
