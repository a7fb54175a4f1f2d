"""The interface in other languages. Blender shows English where a sentence is missing here."""

from __future__ import annotations

LANGUAGES = ("de_DE", "fr_FR")
CONTEXTS = ("*", "Operator")  # Blender looks button names up under Operator, everything else under *

# English: German, French
SENTENCES = {
    # buttons
    "Generate": ("Erzeugen", "Générer"),
    "Cancel": ("Abbrechen", "Annuler"),
    "Finish Now": ("Jetzt abschließen", "Terminer maintenant"),
    "Set Up Backend": ("Backend einrichten", "Installer le moteur"),
    "Cancel Setup": ("Einrichtung abbrechen", "Annuler l'installation"),
    "Check": ("Prüfen", "Vérifier"),
    "Copy Details": ("Einzelheiten kopieren", "Copier les détails"),
    "Open Log": ("Protokoll öffnen", "Ouvrir le journal"),
    "Dismiss": ("Ausblenden", "Masquer"),
    "Show": ("Anzeigen", "Afficher"),
    "Select Result": ("Ergebnis auswählen", "Sélectionner le résultat"),
    "Import Splats": ("Splats importieren", "Importer des splats"),
    "Export Splats": ("Splats exportieren", "Exporter les splats"),
    # the panel
    "Capture": ("Aufnahme", "Capture"),
    "Reconstruction": ("Rekonstruktion", "Reconstruction"),
    "Result": ("Ergebnis", "Résultat"),
    "Source": ("Quelle", "Source"),
    "Orbit Selection": ("Umkreis der Auswahl", "Orbite autour de la sélection"),
    "Scene Cameras": ("Kameras der Szene", "Caméras de la scène"),
    "Animated Camera": ("Animierte Kamera", "Caméra animée"),
    "Viewport": ("3D-Ansicht", "Vue 3D"),
    "Image Files": ("Bilddateien", "Fichiers image"),
    "Cameras File": ("Kameradatei", "Fichier de caméras"),
    "Model": ("Modell", "Modèle"),
    "Fit (per scene)": ("Anpassung (je Szene)", "Ajustement (par scène)"),
    "Quality": ("Qualität", "Qualité"),
    "Preview": ("Vorschau", "Aperçu"),
    "Standard": ("Standard", "Standard"),
    "Final": ("Endfassung", "Final"),
    "Output": ("Ausgabe", "Sortie"),
    "Splats": ("Splats", "Splats"),
    "Mesh": ("Mesh", "Maillage"),
    "Both": ("Beides", "Les deux"),
    "Views": ("Ansichten", "Vues"),
    "Choose Elevations": ("Höhen wählen", "Choisir les hauteurs"),
    "Lowest": ("Niedrigste", "La plus basse"),
    "Highest": ("Höchste", "La plus haute"),
    "Rings": ("Ringe", "Anneaux"),
    "Distance": ("Abstand", "Distance"),
    "Lens": ("Brennweite", "Focale"),
    "Choose Resolution": ("Auflösung wählen", "Choisir la résolution"),
    "Resolution": ("Auflösung", "Résolution"),
    "Depth": ("Tiefe", "Profondeur"),
    "Cameras": ("Kameras", "Caméras"),
    "All": ("Alle", "Toutes"),
    "Selected": ("Ausgewählte", "Sélectionnées"),
    "Selected Only": ("Nur Auswahl", "Sélection seule"),
    "Others": ("Der Rest", "Le reste"),
    "Hidden": ("Ausgeblendet", "Masqué"),
    "Holdout": ("Ausgestanzt", "Découpé"),
    "First Frame": ("Erstes Bild", "Première image"),
    "Last Frame": ("Letztes Bild", "Dernière image"),
    "Frame Step": ("Bildschritt", "Pas d'image"),
    "Choose Steps": ("Schritte wählen", "Choisir les pas"),
    "Steps": ("Schritte", "Pas"),
    "Splat Limit": ("Höchstzahl der Splats", "Limite de splats"),
    "Refine": ("Verfeinern", "Affiner"),
    "Faces": ("Flächen", "Faces"),
    "Texture": ("Textur", "Texture"),
    "Seed": ("Startwert", "Graine"),
    "Match": ("Übereinstimmung", "Concordance"),
    "None yet": ("Noch keines", "Aucun pour l'instant"),
    "Time Left": ("noch", "reste"),
    # what is going on
    "Starting the backend": ("Backend startet", "Démarrage du moteur"),
    "Waiting for another job": ("Wartet auf einen anderen Auftrag", "En attente d'une autre tâche"),
    "Taking pictures": ("Bilder werden aufgenommen", "Prise de vues"),
    "Reading the views": ("Ansichten werden gelesen", "Lecture des vues"),
    "Finding depth": ("Tiefe wird bestimmt", "Recherche de la profondeur"),
    "Finding the shape": ("Form wird bestimmt", "Recherche de la forme"),
    "Fitting the splats": ("Splats werden angepasst", "Ajustement des splats"),
    "Making the mesh": ("Mesh wird gebaut", "Création du maillage"),
    "Baking the texture": ("Textur wird gebacken", "Calcul de la texture"),
    "Building the objects": ("Objekte werden gebaut", "Construction des objets"),
    # why the button is grey, and what went wrong
    "A run is in progress": ("Es läuft schon ein Auftrag", "Une tâche est en cours"),
    "Set up the backend first": ("Zuerst das Backend einrichten", "Installez d'abord le moteur"),
    "The Python named in the preferences does not exist": (
        "Das in den Einstellungen genannte Python gibt es nicht",
        "Le Python indiqué dans les préférences n'existe pas",
    ),
    "Select the object to capture": (
        "Das Objekt auswählen, das aufgenommen werden soll",
        "Sélectionnez l'objet à capturer",
    ),
    "Select cameras first": ("Zuerst Kameras auswählen", "Sélectionnez d'abord des caméras"),
    "The scene has no camera": ("Die Szene hat keine Kamera", "La scène n'a pas de caméra"),
    "The scene has no active camera": ("Die Szene hat keine aktive Kamera", "La scène n'a pas de caméra active"),
    "Choose a transforms.json": ("Eine transforms.json wählen", "Choisissez un transforms.json"),
    "Select a result first": ("Zuerst ein Ergebnis auswählen", "Sélectionnez d'abord un résultat"),
    "Select splats or a result that has them": (
        "Splats oder ein Ergebnis mit Splats auswählen",
        "Sélectionnez des splats ou un résultat qui en contient",
    ),
    "The run was cancelled because another file was opened.": (
        "Der Auftrag wurde abgebrochen, weil eine andere Datei geöffnet wurde.",
        "La tâche a été annulée, car un autre fichier a été ouvert.",
    ),
    "The device ran out of memory. Use fewer or smaller views, fewer splats or another device.": (
        "Der Gerätespeicher reicht nicht. Weniger oder kleinere Ansichten, weniger Splats oder ein anderes Gerät.",
        "Mémoire insuffisante. Utilisez moins de vues ou de splats, des vues plus petites ou un autre périphérique.",
    ),
    "The disk is full. Free some space, then generate again.": (
        "Der Datenträger ist voll. Platz schaffen und noch einmal erzeugen.",
        "Le disque est plein. Libérez de l'espace, puis générez à nouveau.",
    ),
    "The backend ended unexpectedly. Generate again: it starts afresh.": (
        "Das Backend wurde unerwartet beendet. Noch einmal erzeugen: Es startet neu.",
        "Le moteur s'est arrêté. Générez à nouveau : il redémarre.",
    ),
    "Something went wrong inside the backend. Copy the details and report them.": (
        "Im Backend ist etwas schiefgegangen. Bitte die Einzelheiten kopieren und melden.",
        "Une erreur s'est produite dans le moteur. Copiez les détails et signalez-les.",
    ),
    # the preferences
    "Backend Folder": ("Ordner des Backends", "Dossier du moteur"),
    "Accelerator": ("Beschleuniger", "Accélérateur"),
    "Automatic": ("Automatisch", "Automatique"),
    "Processor": ("Prozessor", "Processeur"),
    "Package Index": ("Paketquelle", "Dépôt de paquets"),
    "Use an Existing Environment": ("Vorhandene Umgebung verwenden", "Utiliser un environnement existant"),
    "Device": ("Gerät", "Périphérique"),
    "The backend runs on": ("Das Backend läuft auf", "Le moteur tourne sur"),
    "The backend is starting": ("Das Backend startet", "Le moteur démarre"),
    "The backend is set up": ("Das Backend ist eingerichtet", "Le moteur est installé"),
    "The backend is not set up": ("Das Backend ist nicht eingerichtet", "Le moteur n'est pas installé"),
}

# What bpy.app.translations.register wants: {language: {(context, English): sentence}}
TABLE = {
    language: {
        (context, english): sentences[number] for english, sentences in SENTENCES.items() for context in CONTEXTS
    }
    for number, language in enumerate(LANGUAGES)
}
