"""Instruction wordings of the question and generation sets. Sources that bring their own instructions have none."""

from __future__ import annotations

_LETTER = (
    "Choose the right answer to the question and reply with its letter only.",
    "Which of the lettered options is correct? Give just the letter.",
    "This is an examination question in medicine. Write the letter of the best option and nothing else.",
    "Read the question, weigh the options below it, and return the single letter that stands before the correct one.",
    "Answer this multiple-choice question. Your whole answer is one capital letter.",
    "Pick the option a well-prepared physician would mark; output its letter, without explanation.",
)
_YES_NO_MAYBE = (
    "Does the study answer the question with yes, no or maybe? Write one of these words.",
    "Judge from the abstract what the answer to the question is: yes, no or maybe.",
    "An abstract without its conclusion is followed by a question. Reply with a single word, yes, no or maybe.",
    "Read the findings and decide the research question. Possible answers: yes, no, maybe.",
    "Given the evidence in the text, settle the question below it; use only yes, no or maybe.",
)
_YES_NO_MAYBE_ALONE = (
    "Answer this biomedical research question with one word: yes, no or maybe.",
    "What would a study of this question most likely conclude? Say yes, no or maybe.",
    "From what you know of the literature, is the answer yes, no or maybe? Write only that word.",
    "Decide the question without further material; the answer is yes, no or maybe.",
    "Reply to the question below by a single yes, no or maybe.",
)
_YES_NO = (
    "Use the passages to answer the question with yes or no.",
    "Is the answer to the last line yes or no, going by the text above it? Write one word.",
    "Several excerpts from articles precede a question. Decide it: yes or no.",
    "Read the evidence and reply to the question by yes or no alone.",
    "Settle the biomedical question at the end; the only possible answers are yes and no.",
)
_FACTOID = (
    "Answer the question from the passages with a JSON list of names, the likeliest first, five at most.",
    "Which entity does the question ask for? Return a JSON array of strings, best candidate at the front, no more than "
    "five.",
    "Find the fact that is asked for. Write your candidates in order of confidence, up to five, each in double quotes, "
    "between the square brackets of one JSON list.",
    "The question at the end has a short answer. Give it as a JSON list of one to five strings, ranked.",
    "From the excerpts, name what the question wants. Output format: a JSON list of up to five strings, most probable "
    "first.",
)
_LIST = (
    "Collect everything the question asks for into a JSON list of strings.",
    "The question wants several items. Return them all as a JSON array, one string per item.",
    "Read the passages and enumerate the answers to the last line as a JSON list: square brackets around them, each in "
    "double quotes, commas between them.",
    "List each entity that answers the question, once, in JSON: an array of strings.",
    "Gather the complete set of answers from the excerpts and write it as a JSON list of short strings.",
)
_MEDICATION_STATUS = (
    "Sort the medications of the note by status. Return a JSON object with the keys active, discontinued and neither, "
    "each a list of names.",
    "Which drugs does the patient take, which were stopped, and which are only mentioned? Answer with one JSON object: "
    "under each of its keys, active, discontinued, neither, stands a list of strings, empty where there is none.",
    "Extract every medication from the snippet into one of three lists, active, discontinued or neither, of a JSON "
    "object.",
    "Read the clinical text and write a JSON object that gives, under active, discontinued and neither, the drug names "
    "as the text has them.",
    "For all medications in the passage decide whether they are current, ended or neither; report them as a JSON "
    "object of three lists named active, discontinued and neither.",
)
_COREFERENCE = (
    "What does the pronoun on the last line refer to? Write the noun phrase as a JSON list with one string.",
    "Resolve the pronoun: find its antecedent in the note and return it in a JSON list of one string.",
    "Name the thing or person that the given pronoun stands for, copied from the text: one string in double quotes, in "
    "the square brackets of a JSON list.",
    "A clinical snippet is followed by one of its pronouns. Give the phrase it points back to, as a JSON array holding "
    "a single string.",
    "Identify the antecedent of the pronoun named at the end. Output: a JSON list containing that phrase only.",
)
_SECTION_NOTE = (
    "Write the section of the clinical note that the first line names, from this conversation of doctor and patient.",
    "Turn the dialogue into the text of the stated note section. Give only the text of that section.",
    "Summarise the visit below for the medical record, restricted to the section given at the top.",
    "A doctor talks with a patient. Document what belongs to the named section, in the style of a clinical note.",
    "From the exchange, compose the requested part of the note; the section code stands before the conversation.",
)
_FULL_NOTE = (
    "Write the complete clinical note of this visit from the conversation.",
    "Document the encounter below as a physician would, with history, examination, results, assessment and plan.",
    "Turn the transcript of doctor and patient into a full note with its usual sections.",
    "Compose the visit note for the medical record, leaving out nothing that the dialogue establishes.",
    "You have listened to this consultation. Produce the structured note that goes with it.",
)
_CONSULTATION = (
    "A patient describes a problem. Answer as a physician would.",
    "Reply to the patient's message with medical advice.",
    "You are the doctor in an online consultation: respond to what is written below.",
    "Read the patient's question and explain what it may be and what to do.",
    "Give the person who asks a helpful, medically sound answer.",
    "What would you, as the attending doctor, write back to this patient?",
    "Take the complaint below and write the answer of an experienced clinician.",
    "Someone seeks medical help in the following message. Write your reply to them.",
    "Respond to this health question in plain words, with the next steps that you recommend.",
    "Imagine the patient sits before you and says this. State your assessment and your advice.",
)

WORDINGS: dict[str, tuple[str, ...]] = {
    "MedQA": _LETTER,
    "MedQA-4options": _LETTER,
    "MedMCQA": _LETTER,
    "PubMedQA": _YES_NO_MAYBE,
    "PubMedQA-no-context": _YES_NO_MAYBE_ALONE,
    "BioASQ-yesno": _YES_NO,
    "BioASQ-factoid": _FACTOID,
    "BioASQ-list": _LIST,
    "medication_status": _MEDICATION_STATUS,
    "coreference": _COREFERENCE,
    "Conv2note": _SECTION_NOTE,
    "aci-bench": _FULL_NOTE,
    "iCliniq": _CONSULTATION,
    "chatdoctor": _CONSULTATION,
}
