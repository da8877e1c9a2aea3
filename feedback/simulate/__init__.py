"""Simulated users with planted taste, noise and habits, who leave a log whose truth is known."""

from __future__ import annotations

from raylign.feedback.simulate.answers import AnswerSource, PlantedModel, Question, ShownAnswer, TemplateAnswers
from raylign.feedback.simulate.crowd import PERSONAS, Group
from raylign.feedback.simulate.judge import SignalMix
from raylign.feedback.simulate.log import SimulatedLog, Truth
from raylign.feedback.simulate.people import Habits, Persona, PlantedQuality, StatedRule
from raylign.feedback.simulate.run import Simulation, simulate
from raylign.feedback.simulate.served import ServedAnswers

__all__ = [
    "PERSONAS",
    "AnswerSource",
    "Group",
    "Habits",
    "Persona",
    "PlantedModel",
    "PlantedQuality",
    "Question",
    "ServedAnswers",
    "ShownAnswer",
    "SignalMix",
    "SimulatedLog",
    "Simulation",
    "StatedRule",
    "TemplateAnswers",
    "Truth",
    "simulate",
]
