"""Simulated users with planted taste, noise and habits, who leave a log whose truth is known."""

from __future__ import annotations

from feedback.simulate.answers import AnswerSource, PlantedModel, Question, ShownAnswer, TemplateAnswers
from feedback.simulate.crowd import PERSONAS, Group
from feedback.simulate.judge import SignalMix
from feedback.simulate.log import SimulatedLog, Truth
from feedback.simulate.people import Habits, Persona, PlantedQuality, StatedRule
from feedback.simulate.run import Simulation, simulate
from feedback.simulate.served import ServedAnswers

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
