"""Does token importance find the defects that were planted in the rejected responses?"""
