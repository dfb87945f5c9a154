"""The words of docs/results.md around the table of many things in one run."""

MASS = {
    "mass": (
        """
## Many things in one run

The CIFAR classes, then things from all over the model's vocabulary; the same 106 others are kept each time, asked for
as "a photo of the X" (Acc_s) and in captions of eight other forms ("a X in the forest", "my favourite X"). H_c is the
harmonic mean of 1 - Acc_e and Acc_s (Fig. 7c of the paper). *FID* is a Frechet distance to the base model's pictures in
the judge's features, with shrunk covariances, since these are hundreds of pictures and not tens of thousands; the row
of the base model with another noise shows what chance alone makes of it. *Time* is from the list of concepts to the
erased model, on a machine that had other work to do; the demo model's text layers that change nothing are not computed
here.

The refinement has the preset *demo model, lists of any length* ([search.md](search.md#lists-of-every-length)) and a
prior of captions over the whole vocabulary that steps aside for each list. For each thing four of twelve sentences
stand in it too, such as "we saw one X, and that was all" (SENTENCES in devtools/demo_prior.py), since prompts are made
of more than names; nothing that is asked for stands in it. *Own words too* is what Erase Concepts does by this preset.
LoRAs are trained as by the preset of the other sections; their fusion has lambda2 0.1 for each thing and mu 1, and what
is kept is held as the refined weights read it ([search.md](search.md#fusing-lists)). UCE, SPEED and OCE, by their nodes
and the weights that are published for a few objects, preserve all other things by name. SPEED also has the settings of
its lists of 10 to 100 celebrities, OCE the weights for as many people, in which what is preserved counts, and these in
the form that its objective asks for. UCE and SPEED have no prior; OCE reads the captions of MACE's as it steps aside
for the list, but at 5 and 184 things, and as for people at 1, a thousand of the built-in ones (an earlier record).

Ten are asked for by their synonyms too, and no other word of them is given. *Aliases found*: erased with the 23 words
that Find Aliases tells with its defaults; in the last row the near words that it does not take for aliases are kept,
and names that hold an erased word, as by *keep_near* of Erase Concepts. Nobody has named any of them.
""",
        """

**Of a hundred, half of all that this model knows, 3 are left and 96 of the others stay, H_c 97, and captions are
within a point of the base (63 of 64); of nearly all, 184 of 206 things, 1 percent is left and 97 stay.** The best
hundred published is an H_c of 95.5 (OCE, on another model and other concepts), the paper's own is 90. Of the 68
captions that the base draws right a hundred leave 59; 8 others are right that were not. Up to ten things captions stay
within 3 points, also where the ten go with the aliases that the model tells. At fifty they are 8 off (56 of 64, the aim
was 5): a larger lambda1 brings them back and, on the prompts for searching, more than 5 of the fifty too
([search.md](search.md#lists-of-every-length)). A prior has to hold what prompts are made of, not only what they name:
an earlier one without sentences, with half of this lambda1, kept 52 of a hundred's captions. The sentences were written
after that was seen; none of them is among the forms that are asked for, and to this model every word that it does not
know looks alike.

LoRAs cost nothing here, and gain little: at ten the fusion takes the 5 percent that the refinement of words beside
leaves, at fifty and a hundred it is that refinement again. With what is kept held as the original weights read it, as
Eq. 7 has it, they take a tenth of what stays at a hundred, and a larger lambda2 gives the erased back
([search.md](search.md#fusing-lists)). What they are for is a single concept's synonyms (above).

Synonyms without any word given are not reached by the closed form of names: most of them stay at ten. With the
aliases that the model itself tells, and nobody has named, 18 percent stay (the aim was 20), and 98 of the others: hot
dog and police car go, for car is an alias of automobile now, and captions that name it are taken out of the prior. With
LoRAs, or with near words and longer names kept, all 106 others stay and as many captions as the base draws (6 that it
does not, and 4 of its 68 are lost), and 22 or 23 percent of the synonyms: each time one of the two aims is met and the
other, a point of the others or 20 percent, is missed by 1 to 3. What is left are words of two tokens (amphibian,
anuran, tadpole, hauler, housecat, motorcar, watercraft), which the search among single tokens cannot propose; asked
of the model they explain its pictures by 61 to 97 percent, so that they are found where they are given to be tried.

UCE erases all hundred and everything else; at ten it keeps 93, and 30 percent of the synonyms. SPEED by its settings
for a few leaves a seventh of the hundred and keeps two thirds, by those for lists it leaves none and keeps a third; at
ten both keep all, leave a tenth, and three quarters of the synonyms. OCE has no weight for what is preserved in its
published form for objects: it keeps all at one, a third at five and nothing from ten on. With the weights as for people
and the captions of MACE's prior it keeps all and leaves much of what is to go, 46 of a hundred and 78 of ten; in the
derived form 43 and 73.
""",
    ),
}
